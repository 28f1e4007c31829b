"""What runs quantized layers in integers: plain torch references, the oracles of every faster kernel."""
