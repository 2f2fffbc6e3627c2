"""Raw clips -> a training set."""
