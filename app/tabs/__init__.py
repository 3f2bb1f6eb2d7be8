"""The tabs of the page: each builds its components and says what happens when they are used."""
