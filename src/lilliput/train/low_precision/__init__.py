"""Training in few bits: numbers forward and backward as cheaper hardware would hold them, one method a file."""
