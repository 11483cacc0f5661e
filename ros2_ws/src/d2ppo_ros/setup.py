"""The ROS 2 package, for colcon. With pip it is installed as part of d2ppo (pyproject.toml of the repository)."""

from setuptools import find_packages, setup

NAME = "d2ppo_ros"
NODES = (
    "camera", "realsense", "standin_cameras", "policy", "executor", "safety", "recorder", "object_pose", "sim", "trial",
    "run_trials", "arm", "standin_arm", "standin_stage",
)  # fmt: skip

setup(
    name=NAME,
    version="0.1.0",
    description="Nodes that run a d2ppo policy: camera, policy, executor, safety, recorder, simulator.",
    license="MIT",
    packages=find_packages(include=[NAME, NAME + ".*"]),
    package_data={NAME + ".trials": ["*.html"]},
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/" + NAME]),
        ("share/" + NAME, ["package.xml"]),
    ],
    install_requires=["setuptools"],
    zip_safe=False,
    entry_points={"console_scripts": [f"{node} = {NAME}.nodes.{node}:main" for node in NODES]},
)
