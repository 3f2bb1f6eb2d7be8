"""Tables of the documents, rendered from the committed rows of results/."""
