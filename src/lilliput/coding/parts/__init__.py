"""What several codings share: bits, alphabets, histograms and the rANS stream itself."""
