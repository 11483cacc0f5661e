"""Where things are: AprilTags in camera images -> object poses in the world -> the policy's `object` vector."""
