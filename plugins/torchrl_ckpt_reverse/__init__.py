"""The environment `reverse_text`: spell words backwards."""
