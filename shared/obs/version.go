package obs

// Version is the build's version, set by the linker (see the Makefile).
var Version = "dev"
