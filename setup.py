"""What pyproject.toml cannot say: the top-level folder ``schedules`` is installed as package data."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["sgc_distiller", "sgc_distiller.*"]), "sgc_distiller.schedules"],
    package_dir={"sgc_distiller.schedules": "schedules"},
    package_data={
        "sgc_distiller": ["py.typed", "assets/*", "templates/*.html"],
        "sgc_distiller.schedules": ["**/*.yaml"],
    },
)
