"""From a configuration to what the loop needs: clips to train on, a model that fits them, and its description.

All that can go wrong with a request goes wrong here, before the first step.
"""

from worldline.tokenizers.fsq_video import FSQVideoConfig
from worldline.tokenizers.wan_vae import WanVAEConfig
from worldline.training.config import TrainConfig
from worldline.training.prepare_latents import prepare_latent_world, prepare_vae
from worldline.training.prepare_tokens import prepare_fsq, prepare_token_world
from worldline.training.prepared import Prepared, Progress
from worldline.worlds.st_transformer import STTransformerConfig
from worldline.worlds.wan import WanConfig


def prepare(config: TrainConfig, progress: Progress) -> Prepared:
    """Open the data, tokenise, encode or decode what is needed into caches, build the model. Writes no run folder.

    Raises:
        DataError: the data or given weights are not what they should be.
        UsageError: the configuration asks for something impossible.
    """
    match config.model:
        case FSQVideoConfig():
            return prepare_fsq(config, config.model, progress)
        case WanVAEConfig():
            return prepare_vae(config, config.model, progress)
        case STTransformerConfig():
            return prepare_token_world(config, config.model, progress)
        case WanConfig():
            return prepare_latent_world(config, config.model, progress)
