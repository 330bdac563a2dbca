# The public names and their types, for editors; scripts/write_reference.py writes them from featx/options.py.
from collections.abc import Iterable, Sequence
from os import PathLike
from typing import Literal

from featx import ray as ray
from featx.engine.events import Listener
from featx.engine.extract import Report
from featx.errors import FeatxError as FeatxError
from featx.explore.patches import similar_patches as similar_patches
from featx.explore.similarity import similar as similar
from featx.models.pyramid import Pyramid
from featx.models.search import list_models as list_models
from featx.runs.reading import open_run as open_run

__version__: str

def extract(
    inputs: str | PathLike[str] | Iterable[str | PathLike[str]],
    model: str | None = None,
    output: str | PathLike[str] | None = None,
    *,
    from_file: str | PathLike[str] | None = None,
    listener: Listener | None = None,
    weights: str | PathLike[str] = "pretrained",
    out_indices: Sequence[int] | int | Literal["all"] | None = None,
    strides: Sequence[float] | float | None = None,
    output_stride: int | None = None,
    part: str = "backbone",
    seed: int = 0,
    like: str | PathLike[str] | None = None,
    recipe: str | PathLike[str] | None = None,
    image_size: int | tuple[int, int] | None = None,
    test_size: bool = False,
    fit: str | None = None,
    max_side: int | None = None,
    crop_pct: float | None = None,
    tile: int | None = None,
    halo: int | None = None,
    level_mpp: float | None = None,
    embedding: bool = False,
    pool: str | None = None,
    final: bool = False,
    maps: bool | None = None,
    prefix_tokens: bool = False,
    attention: bool = False,
    modules: Sequence[str] | str | None = None,
    norm: bool = False,
    boxes: str | PathLike[str] | None = None,
    box_size: int | tuple[int, int] | None = None,
    grid: int | tuple[int, int] | None = None,
    grid_pool: str = "avg",
    components: int | None = None,
    fit_on: int | None = None,
    basis: str | PathLike[str] | None = None,
    format: str = "npz",
    dtype: str = "float32",
    overwrite: bool = False,
    retry_failed: bool = False,
    dry_run: bool = False,
    max_disk: int | str | None = None,
    force: bool = False,
    hash_inputs: bool = False,
    shard_mb: int | None = None,
    shard: str | None = None,
    precision: str = "fp32",
    backend: str = "torch",
    device: str = "auto",
    batch_size: int | Literal["auto"] | None = None,
    workers: int | None = None,
    isolate: bool = False,
    engine: str = "local",
    ray_address: str | None = None,
    ray_workers: int | None = None,
    gpus_per_worker: float | None = None,
    max_pixels: int | str = 179000000,
    max_bytes: int | str = 1000000000,
    time_limit: float = 120.0,
    memory_limit: int | str = 4000000000,
) -> Report:
    """Write the features of every image to a folder; calling it again resumes where it stopped.

    Parameters
    ----------
    inputs : str, path or iterable of them
        Files, archives, tables (``photos.parquet::image``), folders (walked) and glob patterns, or URLs of these.
    model : str or None
        timm's: ``arch``, ``arch.tag``, ``hf-hub:org/name`` or ``local-dir:path``; or ultralytics': ``yolov8n``. None
        takes that of `like` or `recipe`.
    output : path or None
        The run's folder, or a URL such as ``s3://bucket/run`` as text; None takes ``features/<model>``.
    from_file : path or None
        A list of images, one path or URL per line.
    listener : callable or None
        Called with each event as it comes: `featx.values.Note`, `featx.values.Outcome`, and those of
        `featx.engine.events`.
    weights : str | PathLike[str]
        Where the parameters come from; FILE:PART takes one of several networks in a checkpoint. Pretrained weights are never replaced by others.
    out_indices : Sequence[int] | int | Literal["all"] | None
        Levels by timm's index, such as 0,2,-1; negative ones count from the end. Default: timm's choice for the model.
    strides : Sequence[float] | float | None
        Levels by stride, such as 8,16,32; for each stride, the deepest level.
    output_stride : int | None
        Dilate the network so that no level has a larger stride; about a third of the networks support it.
    part : str
        Part of a detector: its backbone, its neck (the maps that enter the head), or both.
    seed : int
        Random seed, used with --weights random.
    like : str | PathLike[str] | None
        Take the recipe of this run: its model, with the same weights, and all that its numbers depend on. Options that you give as well take precedence.
    recipe : str | PathLike[str] | None
        Read options from this TOML file, as featx info RUN --recipe prints them. Options that you give as well take precedence.
    image_size : int | tuple[int, int] | None
        Size of the model's input: one side (384), or height x width (256x320). Default: the model's own.
    test_size : bool
        Use the size and crop that the weights were tested with, if they differ from the model's own.
    fit : str | None
        How photos are fitted to the model's input: crop the centre, squash (change the aspect ratio), pad with bars, or native (keep each photo's own size). Default: the model's own, mostly crop.
    max_side : int | None
        With --fit native, shrink photos whose longer side exceeds N pixels to N.
    crop_pct : float | None
        Share of each side of the resized photo that the crop keeps, such as 0.9; 1 crops the least. Default: the model's own.
    tile : int | None
        With --fit native, process pictures in tiles of N x N pixels, and put their maps together; the summary says whether that is exact.
    halo : int | None
        Pixels around each tile that the network sees as well. Default: as far as the network sees; a quarter of a tile if that is more than half of one.
    level_mpp : float | None
        With --tile, read slides (featx\[slides]) at this resolution, in microns a pixel. Default: all pixels.
    embedding : bool
        Keep the vector before the classifier, as embedding.
    pool : str | None
        Make the embedding by pooling the final map, instead of with the network's own head; cls uses the class token.
    final : bool
        Keep the map that the embedding is made from, as final.
    maps : bool | None
        Keep the maps of the levels. Default: where the format can hold them.
    prefix_tokens : bool
        Keep the class and register tokens of every level, as level_N_prefix.
    attention : bool
        Keep the class token's or pooling query's attention, as level_N_attention.
    modules : Sequence[str] | str | None
        Keep the output of this module, such as layer3.0.conv2, as module_NAME, or of all that match a pattern, such as 'blocks.*.mlp'; featx info --modules lists them. Default: none.
    norm : bool
        Apply a transformer's final norm to its levels; featx info shows whether it has one.
    boxes : str | PathLike[str] | None
        Keep the features of each box in this file: COCO JSON, or CSV with key,x1,y1,x2,y2[,id,label]. Photos without boxes are left out.
    box_size : int | tuple[int, int] | None
        Size of a box's features in cells: one side (7), or height x width (7x5); 1 gives one vector per level. Default: 1.
    grid : int | tuple[int, int] | None
        Pool each map to at most this many cells of equal size: per side (7), or height x width (4x6); 1 gives one vector per level.
    grid_pool : str
        How the cells of --grid are made: by the mean of what they cover, or by its maximum.
    components : int | None
        Project each map onto its first N principal components; levels with at most N channels stay as they are.
    fit_on : int | None
        Fit the components on the first N images. Default: 1000.
    basis : str | PathLike[str] | None
        Take the components from another run, or its basis.npz, instead of fitting them; either may be a URL.
    format : str
        npz or safetensors: a file per image; webdataset: tar files of many images; zarr: one array per level; npy: all embeddings in one array; parquet: all embeddings or box vectors in one table.
    dtype : str
        Data type of the stored maps: float32, float16, bfloat16 (with --format safetensors) or int8 (and a scale per channel). Box features, attention and prefix tokens are never int8, embeddings always float32.
    overwrite : bool
        Start from scratch: remove what earlier calls left in the folder.
    retry_failed : bool
        Retry images that failed before, even if unchanged.
    dry_run : bool
        Only forecast the run (images, bytes, memory); nothing is computed or written.
    max_disk : int | str | None
        Refuse a run that would write more than this, and say which options would fit; --dry-run says so, too.
    force : bool
        Run even if disk space or memory seems too small.
    hash_inputs : bool
        Recognise changed images by their sha256 instead of by size and modification time.
    shard_mb : int | None
        Size of the tar files of --format webdataset, in megabytes. Default: 500.
    shard : str | None
        Compute part I of N of the images, so that N tasks of a job array, on any machines, fill one folder at once; slurm reads I and N from the task.
    precision : str
        Precision that the network computes in; fp32 is exact.
    backend : str
        What runs the network.
    device : str
        Where to compute; cuda:0,1 uses these GPUs.
    batch_size : int | Literal["auto"] | None
        Images in one forward pass. Default: auto.
    workers : int | None
        Number of concurrent forward passes. Default: one per core.
    isolate : bool
        Decode in separate processes from the start; otherwise only after a crash or a hang.
    engine : str
        What does the work: this process, or workers in a Ray cluster (featx\[ray]), which all need to see the photos and the folder of the run.
    ray_address : str | None
        Address of the Ray cluster, such as auto, or ray-head:6379; without one, Ray is started on this machine, and shut down afterwards.
    ray_workers : int | None
        Number of workers, each with the model and its own batches. Default: one per node, or per GPU.
    gpus_per_worker : float | None
        GPUs of each worker, such as 1, or 0.5 for two workers on each. Default: 1 on GPUs.
    max_pixels : int | str
        Width times height, as stored and as resized; a larger image fails. With --tile, it limits what is decoded at once. Default: 179M.
    max_bytes : int | str
        Size of the file; a larger one fails. Default: 1GB.
    time_limit : float
        Seconds to read and decode an image. Default: 120.
    memory_limit : int | str
        Memory to decode an image; enforced with --isolate, on Linux. Default: 4GB.

    Returns
    -------
    Report
        Summary, folder and failures. A broken image is a failure in it, not an exception.

    Raises
    ------
    FeatxError
        If the run cannot begin or go on; see `featx.errors`.
    """

def load_pyramid(
    name: str,
    *,
    device: str = "auto",
    weights: str | PathLike[str] = "pretrained",
    out_indices: Sequence[int] | int | Literal["all"] | None = None,
    strides: Sequence[float] | float | None = None,
    output_stride: int | None = None,
    part: str = "backbone",
    seed: int = 0,
    image_size: int | tuple[int, int] | None = None,
    test_size: bool = False,
    fit: str | None = None,
    max_side: int | None = None,
    crop_pct: float | None = None,
    embedding: bool = False,
    pool: str | None = None,
    final: bool = False,
    maps: bool | None = None,
    prefix_tokens: bool = False,
    attention: bool = False,
    modules: Sequence[str] | str | None = None,
    norm: bool = False,
    precision: str = "fp32",
) -> Pyramid:
    """Load a model as a feature pyramid.

    Parameters
    ----------
    name : str
        timm's: ``arch``, ``arch.tag``, ``hf-hub:org/name`` or ``local-dir:path``; or ultralytics': ``yolov8n``.
    device : str
        ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
    weights : str | PathLike[str]
        Where the parameters come from; FILE:PART takes one of several networks in a checkpoint. Pretrained weights are never replaced by others.
    out_indices : Sequence[int] | int | Literal["all"] | None
        Levels by timm's index, such as 0,2,-1; negative ones count from the end. Default: timm's choice for the model.
    strides : Sequence[float] | float | None
        Levels by stride, such as 8,16,32; for each stride, the deepest level.
    output_stride : int | None
        Dilate the network so that no level has a larger stride; about a third of the networks support it.
    part : str
        Part of a detector: its backbone, its neck (the maps that enter the head), or both.
    seed : int
        Random seed, used with --weights random.
    image_size : int | tuple[int, int] | None
        Size of the model's input: one side (384), or height x width (256x320). Default: the model's own.
    test_size : bool
        Use the size and crop that the weights were tested with, if they differ from the model's own.
    fit : str | None
        How photos are fitted to the model's input: crop the centre, squash (change the aspect ratio), pad with bars, or native (keep each photo's own size). Default: the model's own, mostly crop.
    max_side : int | None
        With --fit native, shrink photos whose longer side exceeds N pixels to N.
    crop_pct : float | None
        Share of each side of the resized photo that the crop keeps, such as 0.9; 1 crops the least. Default: the model's own.
    embedding : bool
        Keep the vector before the classifier, as embedding.
    pool : str | None
        Make the embedding by pooling the final map, instead of with the network's own head; cls uses the class token.
    final : bool
        Keep the map that the embedding is made from, as final.
    maps : bool | None
        Keep the maps of the levels. Default: where the format can hold them.
    prefix_tokens : bool
        Keep the class and register tokens of every level, as level_N_prefix.
    attention : bool
        Keep the class token's or pooling query's attention, as level_N_attention.
    modules : Sequence[str] | str | None
        Keep the output of this module, such as layer3.0.conv2, as module_NAME, or of all that match a pattern, such as 'blocks.*.mlp'; featx info --modules lists them. Default: none.
    norm : bool
        Apply a transformer's final norm to its levels; featx info shows whether it has one.
    precision : str
        Precision that the network computes in; fp32 is exact.

    Returns
    -------
    Pyramid
        Ready to be called.

    Raises
    ------
    ModelError, WeightsError, UsageError
        If the model, its levels, its weights or the device cannot be found; each error says what is available instead.
    """
