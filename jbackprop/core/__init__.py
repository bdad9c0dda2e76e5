"""The pass: a network, its forward pass, the δ recursion, and the factors that it leaves."""
