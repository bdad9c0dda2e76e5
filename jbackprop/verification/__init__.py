"""The proof on your own network: every part, the pass, and every quantity beside a reference."""
