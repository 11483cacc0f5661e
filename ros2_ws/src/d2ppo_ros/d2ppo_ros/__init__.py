"""Running a policy on a robot: ROS 2 nodes, and the pure logic behind them. Import `d2ppo_ros.contract`'s house first:
`d2ppo_core` holds what a policy sees and does; only `nodes` and `codec` know ROS."""
