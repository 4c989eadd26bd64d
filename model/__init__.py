"""NanoChat's GPT in Flax NNX, its losses, and its weights in and out."""
