"""What llmkit is held against: each file uses a library as its documentation says, and prints one JSON line."""
