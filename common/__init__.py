"""What every command shares: shell, flags, whole files, memory."""
