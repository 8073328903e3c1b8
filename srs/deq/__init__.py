"""What a deep equilibrium model is, how its fixed point is solved, and differentiated through."""
