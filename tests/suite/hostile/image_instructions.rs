//! Images with every Dockerfile instruction that acts at run time are confined as our own are.
