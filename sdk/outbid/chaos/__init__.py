"""Kill things while durable jobs run, and check from what was recorded that nothing was lost (`outbid chaos`)."""
