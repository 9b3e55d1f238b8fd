"""What the force fields of both fairchem lines share: frozen graphs in the place of their own."""
