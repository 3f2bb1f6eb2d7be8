"""One denoising step of ours beside diffusers' and OpenVINO's, in turns."""
