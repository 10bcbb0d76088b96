//! Which entry of the ESP boots: the rule of systemd-boot.
