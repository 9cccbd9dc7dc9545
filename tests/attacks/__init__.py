"""Files made to do harm, or merely to be unlike any head: each ends in one clear error, and nothing is left."""
