"""How a run lives: errors, files, outputs, resuming, shared work, processes, device, seeds."""
