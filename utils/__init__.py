"""What the stages have in common, in four rooms: run, data, nets, fit; and the command line (cli)."""
