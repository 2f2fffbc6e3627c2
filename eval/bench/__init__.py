"""Speed, memory and accuracy, measured on the machine at hand. See __main__.py for the commands."""
