"""A custom network: dense layers over the pixels, then over the channels (ResMLP: Touvron et al. 2021).

python -m vdm.main --config=configs/digits.py --config.model.net.name=examples.mixer:Mixer \\
    --config.optimizer.name=adamw --config.optimizer.learning_rate=3e-3 --workdir=/tmp/mixer
"""

from flax import linen as nn

from vdm.nets import Network, layers


class Mixer(Network):
    depth: int = 4
    width: int = 64
    dropout: float = 0.1

    @nn.compact
    def __call__(self, z, time, condition=None, train=False):
        h = nn.Dense(self.width)(z.reshape(len(z), -1, z.shape[-1]))  # [batch, pixels, width]
        h += nn.Dense(self.width)(layers.Embedding(self.width)(time, condition))[:, None]
        for _ in range(self.depth):
            h += nn.Dense(h.shape[1])(nn.LayerNorm()(h).swapaxes(1, 2)).swapaxes(1, 2)
            out = nn.Dense(self.width)(nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(h))))
            h += nn.Dropout(self.dropout, deterministic=not train)(out)
        return nn.Dense(self.out_channels, kernel_init=layers.ZEROS)(h).reshape(*z.shape[:-1], -1)
