"""What crosses a wire in Outbid: messages, subjects, errors, declarations. No I/O, nothing of ours imported."""
