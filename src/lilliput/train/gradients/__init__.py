"""How processes that train together exchange gradients: communication hooks for DDP, one a file."""
