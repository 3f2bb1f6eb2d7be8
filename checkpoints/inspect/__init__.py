"""What a file is, said from its header."""
