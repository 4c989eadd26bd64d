"""Fixed recipe, so that results stay comparable when the recipe of `:cpu` is tuned again."""

RECIPE = {
    "recipe.matrix_lr": 1.936,
    "recipe.embedding_lr": 5.76,
    "recipe.unembedding_lr": 0.1536,
    "recipe.scalar_lr": 9.6,
    "recipe.weight_decay": 0.001125,
    "recipe.warmup_fraction": 0.225,
    "recipe.warmdown_fraction": 0.7138,
    "recipe.final_lr_fraction": 0.2,
    "recipe.momentum": 0.8,
    "recipe.second_moment_beta": 0.7057,
}
