"""A small trainer: from a target alone to a head in a published layout."""
