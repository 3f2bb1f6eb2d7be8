"""Jobs on weights files, behind the tool_ scripts and `python -m quantize`."""
