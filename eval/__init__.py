"""Images to numbers: metrics, comparisons, reports."""
