"""What families of several members share: buffers, initialization, the choice of members in a step."""
