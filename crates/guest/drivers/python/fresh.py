"""The first thing in an interpreter that the guest starts on a script: makes its lines seen as they are printed.

The module comes as `sitecustomize`, from an archive that is descriptor 3, and leaves no trace of that.
"""


def begin():
    """Returns what the image's own module of this name raised, if it did."""
    import builtins
    import os
    import sys

    archive = 3
    place = f"/proc/self/fd/{archive}"
    sources = [__loader__.get_data(f"{place}/{name}.py") for name in ("stdout", "packages")]
    sys.path.remove(place)
    sys.path_importer_cache.pop(place, None)
    sys.modules["zipimport"]._zip_directory_cache.pop(place, None)
    os.close(archive)
    rest = os.environ.get("PYTHONPATH", "").partition(":")[2]
    if rest:
        os.environ["PYTHONPATH"] = rest
    else:
        os.environ.pop("PYTHONPATH", None)
    # For each Python that the script starts; this interpreter writes line by line without it.
    os.environ.setdefault("PYTHONUNBUFFERED", "1")

    names = {"__name__": "isol8", "__builtins__": dict(vars(builtins))}
    for source in sources:
        exec(compile(source, "<isol8>", "exec"), names)
    names["make"]()
    _, find_late_packages = names["finder"](lambda: True)
    find_late_packages()

    this = sys.modules.pop("sitecustomize")
    try:
        import sitecustomize
    except Exception as error:
        # The import that fails takes this module out again.
        sys.modules["sitecustomize"] = this
        return error


try:
    failure = begin()
finally:
    del begin
if failure is not None:
    raise failure
del failure
