"""What calls a model's `generate`: shared by the command and by tasks that are scored by what a model writes."""
