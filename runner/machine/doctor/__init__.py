"""What `runner doctor` looks at: probes (the edge), then checks (pure) made of what they found."""
