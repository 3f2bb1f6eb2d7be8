"""What a person faces: generate's settings, batches of files, provenance, the demo grid."""
