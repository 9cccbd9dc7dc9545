"""Results as terminal tables, plots, and a page."""
