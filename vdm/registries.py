"""The built-in components by kind and name, as import paths, so that naming a component imports no other.
This file imports none of them.

For each kind: the base class, and then the names. The first name is the default; "*" stands for every other
name that is not an import path.
"""

KINDS: dict[str, tuple[str, dict[str, str]]] = {
    "model": (
        "vdm.contract:Model",
        {
            "diffusion": "vdm.diffusion.model:Diffusion",
            "naive": "vdm.baselines.naive:Naive",
            "autoregressor": "vdm.baselines.autoregressor:Autoregressor",
            "vae": "vdm.baselines.vae:VAE",
            "mhvae": "vdm.baselines.mhvae:MHVAE",
            "latent": "vdm.baselines.latent:LatentDiffusion",
            "diffenc": "vdm.methods.learned_encoder:DiffEnc",
            "mirrored": "vdm.methods.mirrored:Mirrored",
            "mulan": "vdm.methods.multivariate:MuLAN",
            "dequantised": "vdm.methods.variational_dequantisation:Dequantised",
        },
    ),
    "schedule": (
        "vdm.diffusion.schedule:Schedule",
        {
            "learned_linear": "vdm.diffusion.schedule:LearnedLinear",
            "fixed_linear": "vdm.diffusion.schedule:FixedLinear",
            "cosine": "vdm.diffusion.schedule:Cosine",
            "linear_beta": "vdm.diffusion.schedule:LinearBeta",
            "sigmoid": "vdm.diffusion.schedule:Sigmoid",
            "polynomial": "vdm.diffusion.schedule:Polynomial",
            "learned_net": "vdm.diffusion.schedule:LearnedNet",
            "piecewise": "vdm.diffusion.schedule:Piecewise",
            "moving_net": "vdm.diffusion.schedule:MovingNet",
            "multivariate": "vdm.methods.multivariate:Multivariate",
        },
    ),
    "network": (
        "vdm.nets.network:Network",
        {
            "unet": "vdm.nets.unet:UNet",
            "transformer": "vdm.nets.transformer:Transformer",
            "mlp": "vdm.nets.mlp:MLP",
            "pyramid": "vdm.nets.pyramid:Pyramid",
        },
    ),
    # Networks of the latent VDM, of the VAEs, and of the autoregressor.
    "latent network": ("vdm.nets.network:Network", {"mlp": "vdm.nets.mlp:MLP"}),
    "vector network": ("vdm.nets.residual:Residual", {"mlp": "vdm.nets.residual:Residual"}),
    "causal network": (
        "vdm.nets.causal:Causal",
        {"transformer": "vdm.nets.causal:CausalTransformer", "pixelcnn": "vdm.nets.pixelcnn:PixelCNN"},
    ),
    "parameterisation": (
        "vdm.diffusion.denoiser:Parameterisation",
        {
            "eps": "vdm.diffusion.denoiser:Eps",
            "x": "vdm.diffusion.denoiser:X",
            "v": "vdm.diffusion.denoiser:V",
            "categorical": "vdm.diffusion.denoiser:Categorical",
            "wiener": "vdm.methods.wiener:Wiener",
            "leave_one_out": "vdm.methods.wiener:LeaveOneOut",
        },
    ),
    "times": (
        "vdm.diffusion.times:Times",
        {
            "stratified": "vdm.diffusion.times:Stratified",
            "iid": "vdm.diffusion.times:IID",
            "importance": "vdm.diffusion.times:Importance",
        },
    ),
    "sampler": (
        "vdm.diffusion.sampler:Sampler",
        {
            "ancestral": "vdm.diffusion.sampler:Ancestral",
            "ddim": "vdm.diffusion.sampler:DDIM",
            "dpm2m": "vdm.diffusion.sampler:DPM2M",
        },
    ),
    "encoder": (
        "vdm.methods.learned_encoder:Encoder",
        {
            "learned": "vdm.methods.learned_encoder:Learned",
            "scaled": "vdm.methods.learned_encoder:Scaled",
        },
    ),
    "objective": (
        "vdm.objective:Objective",
        {
            "elbo": "vdm.objective:ELBO",
            "weighted": "vdm.methods.weighted:Weighted",
            "band": "vdm.methods.band:Band",
            "least_variance": "vdm.methods.least_variance:LeastVariance",
            "second_order": "vdm.methods.second_order:SecondOrder",
        },
    ),
    "source": (
        "vdm.data.source:Source",
        {
            "digits": "vdm.data.digits:Digits",
            "swirl": "vdm.data.swirl:Swirl",
            "folder": "vdm.data.folder:Folder",
            "npz": "vdm.data.npz:Npz",
            "*": "vdm.data.tfds:TFDS",
        },
    ),
    "optimizer": (
        "vdm.optimizer:Optimizer",
        {"adamw": "vdm.optimizer:AdamW", "muon": "vdm.optimizer:Muon"},
    ),
    "logger": (
        "vdm.reporting.loggers:Logger",
        {
            "wandb": "vdm.reporting.loggers:WandB",
            "mlflow": "vdm.reporting.loggers:MLflow",
            "aim": "vdm.reporting.loggers:Aim",
        },
    ),
    # In the order in which they are measured.
    "estimator": (
        "vdm.evaluation.estimator:Estimator",
        {
            "elbo": "vdm.evaluation.elbo:ELBO",
            "depth": "vdm.evaluation.depth:Depth",
            "chain": "vdm.evaluation.importance_weighted:Chain",
            "ode": "vdm.evaluation.ode:ODE",
            "codec": "vdm.evaluation.codec:Codec",
        },
    ),
}
