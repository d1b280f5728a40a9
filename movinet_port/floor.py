"""The parity floor: how far two implementations of one network may be apart."""

# Largest difference of the logits, relative to the largest logit's magnitude.
LOGIT_BOUND = 2e-5
