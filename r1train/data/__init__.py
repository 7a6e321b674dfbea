"""From raw text and problem generators to token batches."""
