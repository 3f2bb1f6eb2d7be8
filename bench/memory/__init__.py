"""How much memory loading, conversion and training take."""
