"""The meaning of each metric in the table of the program of BraTS 2026, for the lists of conventions."""

# The parts of the names of metrics, and their meanings.
_SHARES = {"prec": "precision, TP / (TP + FP)", "rec": "recall, TP / (TP + FN)", "f1": "F1, 2 TP / (2 TP + FP + FN)"}
_COUNTS = {
    "tp": "lesions that are matched with a component of the prediction, one to one",
    "fp": "components of the prediction that are not matched",
    "fn": "lesions that are not matched",
}
_GLOBAL = {
    "global_dsc": "Dice of the region; left out if both are empty",
    "global_nsd": "share of both surfaces' voxels within half a voxel; left out if both are empty",
    "global_hd95": "voxels, not mm; 95 % of both surfaces' voxels together; 373 if the two do not overlap, left out if both are empty",
}
_LESIONS = {"dsc": "Dice", "nsd": "share of both surfaces' voxels within half a voxel", "hd95": "HD95 in voxels"}
_SIZES = {"all": "", "large": " from 20 mm³ on", "small": " below 20 mm³"}


def convention(metric: str, ranking: str) -> str:
    """Returns the sentence on a metric of the program's table, for the list of conventions."""
    return f"BraTS 2026: {_meaning(metric, ranking)}"


def _meaning(metric: str, ranking: str) -> str:
    kind, _, rest = metric.partition("_")
    last = rest.rpartition("_")[2]
    if kind in _SIZES and last in _COUNTS | _SHARES:
        return (_COUNTS | _SHARES)[last] + (f"; lesions{_SIZES[kind]}" if _SIZES[kind] else "")
    name, _, statistic = rest.partition("_")
    if kind == "lesionwise" and name in _LESIONS and statistic in ("mean", "std"):
        worst = {"dsc": "0", "nsd": "0", "hd95": "373" if ranking == "mets" else "infinite, null in scores.json,"}[name]
        if ranking == "mets":
            over = f"lesions from 20 mm³ on and false positives; {worst} for a missed lesion and a false positive"
        else:
            over = f"the matched lesions; {worst} if none is matched, left out if there is no lesion"
        return f"{'mean' if statistic == 'mean' else 'standard deviation'} of the {_LESIONS[name]} over {over}"
    return _GLOBAL.get(metric, metric.replace("_", " "))
