# Commands that want to outlive their run: deaf to signals, in a session of their own, without their
# environment, forked twice.
resource "terraform_data" "stubborn" {
  provisioner "local-exec" {
    interpreter = ["/bin/sh", "-c"]
    command     = <<-EOT
      trap '' INT TERM HUP
      setsid sh -c 'trap "" INT TERM HUP; while true; do sleep 600.1; done' &
      env -i /bin/sh -c 'trap "" INT TERM HUP; sleep 600.2 & sleep 600.3' &
      (setsid sleep 600.4 > /dev/null 2>&1 < /dev/null &)
      while true; do sleep 600.5; done
    EOT
  }
}
