"""What all commands share: options, output, errors, AWS clients and plans of calls."""
