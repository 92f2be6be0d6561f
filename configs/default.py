"""The whole schema: every field that a run has. The other configs change it.

On its own it is a small VDM on scikit-learn's digits; see configs/digits.py.
"""

from ml_collections import ConfigDict


def get_config():
    c = ConfigDict()
    c.seed = 0  # of the parameters, the order of the data, and all noise
    c.parallel = "pmap"  # how the step is mapped over devices: pmap, shard_map

    c.data = ConfigDict()
    c.data.name = "digits"  # digits, swirl, folder, npz, or the name of a TFDS data set
    c.data.data_dir = ""  # the folder, the .npz file, or where TFDS sets are prepared
    c.data.vocab_size = 17  # levels of a value: 256 for 8 bits; the digits have 17
    c.data.image_size = 0  # crop and resize a folder's images to this side; 0: as they are
    c.data.augment = ""  # any of flip, rotate, channels, joined by commas
    c.data.on_device_gib = 1.0  # a training split up to this size is kept on the devices

    c.model = ConfigDict()
    c.model.name = "diffusion"
    c.model.parameterisation = "eps"  # what the network predicts: eps, x, v, levels
    c.model.condition = "none"  # what it is told beside γ: none, label, augmented
    c.model.drop_label = 0.0  # share of the training images whose label is not told
    c.model.guidance = 0.0  # in sampling, how far it goes beyond what the label changes; needs drop_label
    c.model.timesteps = 0  # T, the depth of the chain; 0: continuous time
    c.model.latent = 16  # vae, mhvae, latent: how many numbers a latent has
    c.model.restrictions = ""  # mhvae: any of I, II, III of the lecture, by commas; all make it a VDM
    c.model.times = "stratified"  # over the global batch; or iid; or importance: stratified, and more
    # of them where the loss varies more, as seen over the last hundred steps
    c.model.sampler = "ancestral"  # or dpm2m, which needs about 20 steps, or ddim
    c.model.sample_steps = 250  # its steps, where T is 0

    c.model.schedule = ConfigDict()
    c.model.schedule.name = "learned_linear"  # or fixed_linear, cosine, linear_beta, sigmoid,
    # polynomial, learned_net; min_variance, piecewise: learned for least variance; multivariate
    c.model.schedule.gamma_min = -13.3  # γ(0) = −log SNR of z_0, or where it starts
    c.model.schedule.gamma_max = 5.0  # γ(1), or where it starts
    c.model.schedule.learn_ends = False  # learned_net, min_variance, piecewise: whether the end points are learned
    c.model.schedule.context = 0  # multivariate: size of a learned context of each picture; 0: none

    c.model.net = ConfigDict()
    c.model.net.name = "unet"  # unet, transformer, mlp
    c.model.net.depth = 4  # unet: blocks down; transformer, mlp: layers
    c.model.net.width = 64  # channels
    c.model.net.dropout = 0.1
    c.model.net.fourier = 2  # frequencies of the Fourier features, each half of the one before
    c.model.net.highest = 0.0  # the first of them, cycles per unit; 0: V/2, the lattice of the levels
    c.model.net.attention = "middle"  # unet: middle, everywhere
    c.model.net.heads = 1  # of the attention
    c.model.net.patch = 1  # transformer: side of a token's square of pixels
    c.model.net.dtype = "float32"  # of its products: float32, bfloat16
    c.model.net.remat = "dots"  # what a loop keeps of a layer for its gradient: none (all), dots, block

    c.optimizer = ConfigDict()
    c.optimizer.name = "adamw"  # adamw; muon: for the matrices inside the layers
    c.optimizer.learning_rate = 2e-4
    c.optimizer.warmup = 100  # steps from 0 to the learning rate
    c.optimizer.decay = "constant"  # after that: constant, or cosine to 0 at the last step
    c.optimizer.b1 = 0.9
    c.optimizer.b2 = 0.99
    c.optimizer.eps = 1e-8
    c.optimizer.weight_decay = 0.01
    c.optimizer.clip = 0.0  # largest norm of the gradient; 0: not clipped

    c.train = ConfigDict()
    c.train.steps = 2_000
    c.train.batch_size = 128  # over all devices of all hosts
    c.train.accumulate = 1  # parts that a device takes its share of the batch in
    c.train.substeps = 20  # steps that are taken in one call of the device (1 for a unet on a CPU)
    c.train.ema = 0.999  # decay of the average of the parameters, which is evaluated
    c.train.log_every = 100  # steps; so are the three below. 0: never
    c.train.eval_every = 500
    c.train.checkpoint_every = 500
    c.train.sample_every = 1_000
    c.train.keep = 2  # newest checkpoints kept, beside the best

    c.eval = ConfigDict()
    c.eval.batch_size = 120  # over all devices of all hosts
    c.eval.estimators = "elbo"  # of --mode=eval: elbo, depth, chain, ode, by commas; or all
    c.eval.passes = 20  # times each image is evaluated with --mode=eval, and at the end
    c.eval.passes_in_training = 2  # and as training goes
    c.eval.checkpoint = "newest"  # which one --mode=eval and sample take: newest, best
    c.eval.images = 0  # only so many of the test images; 0: all
    c.eval.target_se = 0.0  # --mode=eval, in bits/dim: instead of `passes`, as many as bring the
    c.eval.max_passes = 1_000  # Monte-Carlo noise of the ELBO below it, but no more than these
    c.eval.depths = "1,2,5,10,20,50,100,200,500,1000"  # depth: the T of the chains

    c.eval.chain = ConfigDict()  # chain: importance weights on a chain
    c.eval.chain.timesteps = 50  # T, of a diffusion; other models have a chain of their own
    c.eval.chain.samples = 16  # K, paths for each image

    c.eval.ode = ConfigDict()  # ode: the likelihood of the probability-flow ODE
    c.eval.ode.tolerance = 1e-5  # relative and absolute, of z, for each step's own size
    c.eval.ode.nodes = 128  # intervals in γ of the divergence's integral
    c.eval.ode.samples = 4  # K of the importance-weighted bound, with the exact divergence,
    c.eval.ode.images = 48  # on only so many images, as it costs a Jacobian at each node

    c.sample = ConfigDict()
    c.sample.num = 64  # images
    c.sample.batch_size = 64  # over all devices of all hosts
    return c
