"""How the shipped tiny model was trained."""
