"""The program measured beside its peers: time, memory and quality, each question one command."""
